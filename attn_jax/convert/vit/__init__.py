"""ViT checkpoints of four code bases, and a model at another resolution.

names.py holds the tables of names that readers and writers share; read_npz.py reads
vision_transformer and big_vision, read_hf.py transformers, read_timm.py timm; write.py writes the
last two; fit.py and resize.py adapt a model to images or patches of another size.
"""
