"""Readers of boxes in text files, one for each image: YOLO, DOTA and KITTI."""
