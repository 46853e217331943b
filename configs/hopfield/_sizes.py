"""How the parameters of Hopfield pooling are sharded."""

# Heads over `tensor`, the other dimension of each matrix over `fsdp`, as in a Transformer.
POOLING = [
    [".*/hopfield/(query|key|value)/kernel", ["fsdp", "tensor", None]],
    [".*/hopfield/(query|key|value)/bias", ["tensor", None]],
    [".*/hopfield/out/kernel", ["tensor", None, "fsdp"]],
]
