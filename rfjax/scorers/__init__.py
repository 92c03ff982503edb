"""Computes published scores of folders of images, made by any model: GenEval, CLIP score, FID, CMMD and others."""
