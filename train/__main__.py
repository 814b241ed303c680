"""`python -m zoo.train model=rmt`"""

from zoo.train.commands.train import main

main()
