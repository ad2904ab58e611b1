"""Three servers, one interface: a picture's bytes in, a `Prediction` out.

``wire`` says what each server's HTTP requests and responses look like (without any HTTP library, so that the load
generator can use its own), ``http_client`` sends them, ``golden`` compares answers with a bundle's golden ones.
"""
