from django.core.paginator import Paginator
from django.db.models import Sum
from django.http import FileResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.cache import cache_page
from django.views.decorators.http import require_safe

from .models import Product, Purchase, Report
from .receipts import write_receipts


@require_safe
@cache_page(300)
def home(request):
    """The landing page: made once, then served from the machine's file system."""
    products = Product.objects.annotate(sold=Sum("item__count"))
    return render(request, "store/home.html", {"products": products})


@require_safe
def purchases(request):
    page = Paginator(Purchase.objects.all(), 25).get_page(request.GET.get("page"))
    return render(request, "store/purchases.html", {"page": page, "report": Report.objects.last()})


@require_safe
def purchase(request, pk):
    found = get_object_or_404(Purchase, pk=pk)
    items = found.items.select_related("product")
    return render(request, "store/purchase.html", {"purchase": found, "items": items})


# The two heavy views: settings.SERVERLESS_ROUTES sends them to a machine of
# their own. Nothing here knows of it.


@require_safe
def receipts(request):
    return pdf("receipts.pdf", "All receipts", Purchase.objects.order_by("id"))


@require_safe
def receipt(request, pk):
    get_object_or_404(Purchase, pk=pk)
    return pdf(f"receipt-{pk}.pdf", f"Receipt {pk}", Purchase.objects.filter(pk=pk))


def pdf(name, title, purchases):
    file = write_receipts(title, purchases.prefetch_related("items__product"))
    return FileResponse(file, filename=name, content_type="application/pdf")
