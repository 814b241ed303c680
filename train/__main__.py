"""`python -m zoo.train model=rmt`"""

from zoo.errors import refuse_other_systems

refuse_other_systems()

from zoo.train.commands.train import main  # noqa: E402 - it imports what other systems don't have

main()
