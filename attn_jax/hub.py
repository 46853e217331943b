"""Checkpoints on the Hugging Face Hub: hf:OWNER/NAME, or hf:OWNER/NAME@REVISION."""

import functools
import pathlib

PREFIX = "hf:"
# What is read of a repository; never a pickled file.
FILES = (
    "config.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)


@functools.cache
def download(name: str) -> pathlib.Path:
    """Downloads `FILES` of a repository, unless they are in the cache; returns their folder.

    Cache, server, token and offline mode are those of huggingface_hub (HF_HOME, HF_ENDPOINT,
    HF_TOKEN, HF_HUB_OFFLINE). A REVISION is a branch, a tag or a commit; without it, main.

    Raises:
        ValueError: the repository or revision does not exist, or may not be read; it is not in the
            cache and the Hub cannot be reached; huggingface_hub is not installed.
    """
    try:
        import huggingface_hub
        from huggingface_hub import constants, errors
    except ImportError:
        raise ValueError(
            f"{name} needs huggingface_hub: pip install 'attn_jax[hub]'."
        ) from None
    repository, _, revision = name.removeprefix(PREFIX).partition("@")
    try:
        folder = huggingface_hub.snapshot_download(
            repository, revision=revision or None, allow_patterns=list(FILES)
        )
    except errors.HFValidationError:
        raise ValueError(
            f"{name} must be hf:OWNER/NAME or hf:OWNER/NAME@REVISION."
        ) from None
    except errors.GatedRepoError:
        raise ValueError(
            f"{name} is gated: accept its terms on {constants.ENDPOINT}/{repository}, then log in with "
            "`hf auth login`."
        ) from None
    except errors.RepositoryNotFoundError:
        raise ValueError(
            f"{name} does not exist on {constants.ENDPOINT}, or is private; check the name, or log in "
            "with `hf auth login`."
        ) from None
    except errors.RevisionNotFoundError:
        raise ValueError(
            f"{name}: the repository has no revision {revision!r}; name a branch, a tag or a commit."
        ) from None
    except errors.LocalEntryNotFoundError:
        reason = (
            "HF_HUB_OFFLINE is set"
            if constants.is_offline_mode()
            else f"{constants.ENDPOINT} cannot be reached"
        )
        raise ValueError(
            f"{name} is not in the cache {constants.HF_HUB_CACHE}, and {reason}. Download it once "
            "with a connection."
        ) from None
    if not pathlib.Path(folder, "config.json").exists():
        raise ValueError(f"{name} has no config.json, so it is no checkpoint to read.")
    return pathlib.Path(folder)
