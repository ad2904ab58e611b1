"""The TorchServe deployment: a bundle -> archive and configuration -> a JVM with Python workers.

``handler`` runs inside the workers, ``archive`` packs it with a bundle, ``configuration`` renders the settings,
``launch`` starts it.
"""
