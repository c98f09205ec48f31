"""python -m kdgen"""

from kdgen.cli import main

main()
