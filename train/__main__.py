"""`python -m zoo.train model=rmt`"""

from zoo.train.cli import main

main()
