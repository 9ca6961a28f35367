"""Long-tailed image classification with the classifiers, losses and adjustments of the detector.

images.py         labelled images, in memory or in files; a benchmark's two splits
long_tail.py      makes a balanced training split long-tailed
cutout_images.py  a benchmark drawn from the bundled cutouts
sources.py        CIFAR, folders of images, ImageNet-LT's lists
model.py          ResNet and classifier
training.py       loss and optimisation
methods.py        adjustments, and classifiers trained again (cRT, LWS)
accuracy.py       all, many, medium, few; the table of an experiment
settings.py       what a run depends on
experiment.py     classifiers × seeds, each run in a process of its own
"""
