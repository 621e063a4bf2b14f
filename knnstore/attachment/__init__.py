"""A language model joined to a store: the search, the setting, the check that they belong together, the hooks."""

from knnstore.attachment.attach import Attachment, Joined, adopted_model, attach_store
from knnstore.attachment.defaults import AttachedMixture, choose_mixture
from knnstore.attachment.search import Search

__all__ = ["AttachedMixture", "Attachment", "Joined", "Search", "adopted_model", "attach_store", "choose_mixture"]
