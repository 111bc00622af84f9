"""COCO reading and checking, shards, the sample order, streaming, augmentation."""
