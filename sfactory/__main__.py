"""`python -m sfactory`: the console command without its script."""

from sfactory.cli.main import main

if __name__ == "__main__":
    main()
