"""Proof that the servers agree: ``checks`` (`trident verify`) and ``drill`` (`trident drill`)."""
