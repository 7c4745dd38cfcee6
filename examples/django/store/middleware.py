import os

MACHINE = os.environ.get("FLY_MACHINE_ID", "local")


def machine(get_response):
    """Says on each response which machine made it."""

    def middleware(request):
        response = get_response(request)
        response["Store-Machine"] = MACHINE
        return response

    return middleware
