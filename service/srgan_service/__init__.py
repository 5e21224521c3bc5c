"""The upscaler over HTTP: `app.create_app` makes the application, `server.serve` runs it.

    http        what a request may say, the routes, and how everything is answered
    jobs        pictures that take longer than a request
    work        the way of one picture: admission, turns, models
    static      the page at `/`

    routes -> uploads -> admission -> upscaling -> models -> device    one request, from its body to its picture
    job_routes -> jobs -> upscaling                                    the same, when it may take long

Nothing here knows how a picture is decoded, upscaled or encoded: that is `srgan`.
"""
