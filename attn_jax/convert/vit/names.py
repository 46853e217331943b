"""Tables of names: where four code bases keep the parameters of a ViT.

Each function returns {our parameter: entry} for all parameters that such a module may have.
"""

from attn_jax.convert.arrays import Entry, Layout, Rows, dense_entries, norm_entries
from attn_jax.models.vit import ViT

# {their name of an activation: ours}. If two have the same meaning, the first is written.
HF_GELU = {
    "gelu": "erf",
    "gelu_pytorch_tanh": "tanh",
    "gelu_new": "tanh",
    "quick_gelu": "quick",
}
TIMM_GELU = {"gelu": "erf", "gelu_tanh": "tanh", "quick_gelu": "quick"}


def npz_entries(module: ViT) -> dict[str, Entry]:
    """Makes the table of vision_transformer and big_vision, in today's names of the latter.

    Source: vision_transformer checkpoint.py; big_vision models/vit.py.
    """
    entries = {
        "cls": Entry("cls"),
        "pos_embedding": Entry("pos_embedding"),
        "attention_pooling/probe": Entry("MAPHead_0/probe"),
    }

    def add_layer(ours: str, theirs: str, layout: Layout = "same") -> None:
        for leaf in ("kernel", "bias", "scale"):
            entries[f"{ours}/{leaf}"] = Entry(f"{theirs}/{leaf}", layout)

    def add_attention_and_mlp(ours: str, theirs: str) -> None:
        attention = f"{theirs}/MultiHeadDotProductAttention_0"
        for part in ("query", "key", "value", "out"):
            add_layer(f"{ours}/attention/{part}", f"{attention}/{part}")
        for i in (1, 2):
            add_layer(f"{ours}/mlp/dense_{i}", f"{theirs}/MlpBlock_0/Dense_{i - 1}")

    add_layer("embedding", "embedding")
    add_layer("encoder_norm", "Transformer/encoder_norm")
    add_layer("pre_logits", "pre_logits")
    add_layer("head", "head")
    add_layer("attention_pooling/norm", "MAPHead_0/LayerNorm_0")
    add_attention_and_mlp("attention_pooling", "MAPHead_0")
    for i in range(module.depth):
        ours, theirs = f"block_{i}", f"Transformer/encoderblock_{i}"
        add_attention_and_mlp(ours, theirs)
        for n in (1, 2):
            add_layer(f"{ours}/norm_{n}", f"{theirs}/LayerNorm_{n - 1}")
    if module.stem is not None:
        add_layer("stem/conv_root", "conv_root")
        # Old files keep group norms as [1, 1, 1, C].
        add_layer("stem/gn_root", "gn_root", "squeezed")
        for stage, size in enumerate(module.stem.stage_sizes):
            for unit in range(size):
                ours = f"stem/stage_{stage}_unit_{unit}"
                theirs = f"block{stage + 1}/unit{unit + 1}"
                for part in ("1", "2", "3", "_proj"):
                    add_layer(f"{ours}/conv{part}", f"{theirs}/conv{part}")
                    add_layer(f"{ours}/gn{part}", f"{theirs}/gn{part}", "squeezed")
    return entries


def hf_entries(module: ViT) -> dict[str, Entry]:
    """Makes the table of Hugging Face transformers, without the prefix `vit.`.

    Source: transformers modeling_vit.py.
    """
    entries = {
        "cls": Entry("embeddings.cls_token"),
        "pos_embedding": Entry("embeddings.position_embeddings"),
        "mask_token": Entry("embeddings.mask_token"),
        **dense_entries("embedding", "embeddings.patch_embeddings.projection", "conv"),
        **norm_entries("encoder_norm", "layernorm"),
        **dense_entries("pre_logits", "pooler.dense"),
        **dense_entries("head", "classifier"),
        **dense_entries("patch_head", "decoder.0", "conv1x1"),
    }
    for i in range(module.depth):
        ours, theirs = f"block_{i}", f"encoder.layer.{i}"
        for part in ("query", "key", "value"):
            entries |= dense_entries(
                f"{ours}/attention/{part}",
                f"{theirs}.attention.attention.{part}",
                "heads",
            )
        entries |= {
            **dense_entries(
                f"{ours}/attention/out", f"{theirs}.attention.output.dense"
            ),
            **dense_entries(f"{ours}/mlp/dense_1", f"{theirs}.intermediate.dense"),
            **dense_entries(f"{ours}/mlp/dense_2", f"{theirs}.output.dense"),
            **norm_entries(f"{ours}/norm_1", f"{theirs}.layernorm_before"),
            **norm_entries(f"{ours}/norm_2", f"{theirs}.layernorm_after"),
        }
    return entries


def timm_entries(module: ViT) -> dict[str, Entry]:
    """Makes the table of timm's VisionTransformer.

    Query, key and value share one matrix, `qkv`; in attention pooling key and value share `kv`.

    Source: timm models/vision_transformer.py, layers/attention_pool.py.
    """
    width, pool = module.width, "attention_pooling"

    def rows(part: int, parts: int) -> Rows:
        return Rows(part * width, (part + 1) * width, parts * width)

    final_norm = "fc_norm" if module.rules.norm_after_pool else "norm"
    entries = {
        "cls": Entry("cls_token"),
        "registers": Entry("reg_token"),
        "pos_embedding": Entry("pos_embed"),
        **dense_entries("embedding", "patch_embed.proj", "conv"),
        **norm_entries("pre_norm", "norm_pre"),
        **norm_entries("encoder_norm", final_norm),
        **dense_entries("head", "head"),
        f"{pool}/probe": Entry("attn_pool.latent"),
        **dense_entries(f"{pool}/attention/query", "attn_pool.q", "heads"),
        **dense_entries(f"{pool}/attention/key", "attn_pool.kv", "heads", rows(0, 2)),
        **dense_entries(f"{pool}/attention/value", "attn_pool.kv", "heads", rows(1, 2)),
        **dense_entries(f"{pool}/attention/out", "attn_pool.proj"),
        **norm_entries(f"{pool}/norm", "attn_pool.norm"),
        **dense_entries(f"{pool}/mlp/dense_1", "attn_pool.mlp.fc1"),
        **dense_entries(f"{pool}/mlp/dense_2", "attn_pool.mlp.fc2"),
    }
    for i in range(module.depth):
        ours, theirs = f"block_{i}", f"blocks.{i}"
        for j, part in enumerate(("query", "key", "value")):
            entries |= dense_entries(
                f"{ours}/attention/{part}", f"{theirs}.attn.qkv", "heads", rows(j, 3)
            )
        entries |= {
            **dense_entries(f"{ours}/attention/out", f"{theirs}.attn.proj"),
            **norm_entries(f"{ours}/attention/query_norm", f"{theirs}.attn.q_norm"),
            **norm_entries(f"{ours}/attention/key_norm", f"{theirs}.attn.k_norm"),
        }
        for n in (1, 2):
            entries |= {
                **dense_entries(f"{ours}/mlp/dense_{n}", f"{theirs}.mlp.fc{n}"),
                **norm_entries(f"{ours}/norm_{n}", f"{theirs}.norm{n}"),
                f"{ours}/scale_{n}": Entry(f"{theirs}.ls{n}.gamma"),
            }
    return entries
