"""Plans a run before it is run: compiles its train step for devices that are not here.

`topologies` knows the chips, `inputs` the shapes of a batch, `compiling` the memory, `hlo` the
collectives, `roofline` the time, `report` all of it as one dict and as text; `search` compares
plans, and `measuring` runs a few steps on the devices that are here.
"""
