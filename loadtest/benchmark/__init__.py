"""The benchmark: ``calibration`` (the generator alone), ``rounds`` (parity gate, then every load on every lane), ``result``."""
