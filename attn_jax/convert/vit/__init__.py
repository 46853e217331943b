"""ViT checkpoints of four code bases, and their adaptation to another resolution.

names.py holds the tables of names that readers and writers share; read_npz.py reads files of
vision_transformer and big_vision, read_hf.py those of transformers, read_timm.py those of timm;
write.py writes the last two; fit.py and resize.py adapt a model to images or patches of another
size.
"""
