"""Rows of an optimizer step → padded batches, packs and prefix trees, of a bounded size.

In: token rows. Out: numpy trees and plain batches. Knows nothing of models, trainers or settings.
"""
