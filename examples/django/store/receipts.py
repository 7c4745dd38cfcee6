"""Receipts as PDF documents."""

import io

from reportlab.lib.colors import HexColor
from reportlab.lib.pagesizes import A4
from reportlab.lib.units import mm
from reportlab.pdfgen.canvas import Canvas

from .templatetags.money import euros

INK, ACCENT, FAINT = HexColor("#212b28"), HexColor("#1f6f54"), HexColor("#f0f4f2")
WIDTH, HEIGHT = A4
LEFT, RIGHT, TOP, BOTTOM = 15 * mm, WIDTH - 15 * mm, HEIGHT - 20 * mm, 25 * mm
COUNT, PRICE = RIGHT - 70 * mm, RIGHT - 35 * mm  # right edges of these columns
ROW = 7 * mm


def write_receipts(title, purchases):
    """Returns a file with a receipt for each purchase, on pages of its own."""
    file = io.BytesIO()
    canvas = Canvas(file, pagesize=A4, invariant=True)  # the same purchases, the same document
    canvas.setTitle(title)
    canvas.setAuthor("Roost Store")
    for purchase in purchases:
        write_receipt(canvas, purchase)
    canvas.save()
    file.seek(0)
    return file


def write_receipt(canvas, purchase):
    y = heading(canvas, f"Receipt {purchase.pk}", f"{purchase.at:%d %B %Y, %H:%M} UTC", f"{purchase.customer}, {purchase.city}")
    for n, item in enumerate(purchase.items.all()):
        if y < BOTTOM:
            canvas.showPage()
            y = columns(canvas, TOP)
        row(canvas, y, n, item.product.name, str(item.count), euros(item.price), euros(item.amount))
        y -= ROW
    canvas.setFont("Helvetica-Bold", 12)
    canvas.line(COUNT, y + 2 * mm, RIGHT, y + 2 * mm)
    canvas.drawRightString(PRICE, y - 4 * mm, "Total")
    canvas.drawRightString(RIGHT, y - 4 * mm, euros(purchase.total))
    canvas.showPage()


def heading(canvas, title, *lines):
    canvas.setFillColor(ACCENT)
    canvas.setFont("Helvetica-Bold", 20)
    canvas.drawString(LEFT, TOP, title)
    canvas.setFillColor(INK)
    canvas.setFont("Helvetica", 10)
    y = TOP
    for line in lines:
        y -= 6 * mm
        canvas.drawString(LEFT, y, line)
    return columns(canvas, y - 12 * mm)


def columns(canvas, y):
    canvas.setFillColor(INK)
    canvas.setFont("Helvetica-Bold", 10)
    canvas.drawString(LEFT, y, "Product")
    for right, text in ((COUNT, "Count"), (PRICE, "Price"), (RIGHT, "Amount")):
        canvas.drawRightString(right, y, text)
    canvas.line(LEFT, y - 2 * mm, RIGHT, y - 2 * mm)
    return y - ROW


def row(canvas, y, n, name, *numbers):
    if n % 2:
        canvas.setFillColor(FAINT)
        canvas.rect(LEFT, y - 2 * mm, RIGHT - LEFT, ROW, stroke=0, fill=1)
    canvas.setFillColor(INK)
    canvas.setFont("Helvetica", 10)
    canvas.drawString(LEFT, y, name)
    for right, text in zip((COUNT, PRICE, RIGHT), numbers):
        canvas.drawRightString(right, y, text)
