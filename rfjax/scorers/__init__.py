"""Published scores of folders of images, by anybody's models: GenEval, CLIP score, FID, CMMD."""
