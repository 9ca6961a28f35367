"""Long-tailed image classification with the classifiers and losses of the detector's box head.

images.py         batches of labelled images, in memory or from files; a benchmark's two splits
long_tail.py      n_i = n_max · IF^(−i/(C−1))
cutout_images.py  a benchmark drawn from the bundled cutouts
sources.py        CIFAR, folders of images, ImageNet-LT's lists
model.py          ResNet and classifier
training.py       loss, schedule, samplers
accuracy.py       all, many, medium, few
methods.py        TDE, τ-norm, NCM, cRT, LWS
experiment.py     several classifiers and seeds, and their table
"""
