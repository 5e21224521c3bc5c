"""The upscaler over HTTP: `app.create_app` makes the application, `server.serve` runs it.

    app -> uploads -> admission -> work -> models -> device        one request, from its body to its picture
    app -> jobs -> work                                            the same, when it may take long

Nothing here knows how a picture is decoded, upscaled or encoded: that is `srgan`.
"""
