from django import template

register = template.Library()


@register.filter
def euros(cents):
    return f"EUR {cents // 100}.{cents % 100:02}"
