"""Pictures of every kind of input, for training and for sorting: folders, files, archives, lists. No torch.

pixels, colour, image: what one picture becomes. batches: images on their way. folder, arrays, parquet, tar, listing:
the kinds of input; sources opens them. child, pool, decode, thumbnails, samples, collect: what becomes of their images.
"""
