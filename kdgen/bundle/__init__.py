"""From dataset folders to what trainers, hubs and auditors read: `kdgen export`."""
