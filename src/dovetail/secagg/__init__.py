"""Secure aggregation without a network: many vectors go in, their sum comes out, nobody sees one.

Bonawitz et al. (2017), "Practical secure aggregation for privacy-preserving machine learning",
figure 4, in the variant for active adversaries. :mod:`~dovetail.secagg.protocol` plays it through.
"""
