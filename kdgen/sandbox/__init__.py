"""Running programs that nobody has read: with no network, nothing to write to and limits on everything."""
