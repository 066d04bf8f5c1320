"""What steers the paper's latent diffusion models besides text: classes, semantic maps, layouts.

Each turns what a user gives into what a UNet takes: tokens that it attends to, or further channels
of the same height and width (arXiv:2112.10752, section 3.3).
"""
