"""Datasets in COCO format: where they are, what they hold, and the deterministic views of them.

Nothing is imported here, so that a command pays only for what it uses (importing detectron2
takes seconds):

    dataset.views        one deterministic augmentation of one image
    dataset.annotations  digests of an annotation file
    dataset.registry     folders and names known to detectron2
    dataset.showing      a sheet of views
    dataset.checking     is the data what its annotations say?
    dataset.synthetic    a small set to try things on
    dataset.split        a training and a validation set from one annotation file
    dataset.unlabeled    a set of which only the images are known
    dataset.sets         several data sets as one
    dataset.voc          Pascal VOC's layout in COCO's
    dataset.download     COCO 2017
"""
