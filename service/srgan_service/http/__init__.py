"""What the service says and hears.

routes, job_routes, manual       the addresses, and the page that describes them
middleware, protocol             what is around every request, and around every connection
parameters, uploads, keys        what a request may say: how, what, and on whose behalf
problems, openapi                how it is refused, and how all of that is documented
cancellation                     work goes on only as long as somebody waits for it
"""
