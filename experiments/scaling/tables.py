"""Tables of the page."""

from collections.abc import Sequence

from experiments.scaling.checks import Check
from experiments.scaling.collectives import Traffic
from experiments.scaling.hardware import DEVICES_PER_NODE, H100, H200, Hardware
from experiments.scaling.plans import best, limit
from experiments.scaling.step_time import images_per_second, share_of_peak, step_seconds
from experiments.scaling.training import FLOAT, Memory, Setting, memory, traffic
from experiments.scaling.transformer import ALL, INPUTS, PRODUCTS, Transformer, kept_bytes

NUMBERS = (1, 8, 64, 512)
"""Of devices."""


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown."""
    lines = [f"| {' | '.join(row)} |" for row in (head, *rows)]
    lines.insert(1, "|---" * len(head) + "|")
    return "\n".join(lines) + "\n"


def layout(setting: Setting) -> str:
    """How a copy of the parameters lies."""
    if setting.fsdp == 1:
        return "a copy each"
    return f"fsdp={setting.fsdp}" + ", **by layer**" * setting.by_layer


def rates(setting: Setting | None) -> str:
    """Images a second, with no collective hidden and with as many as can be; nothing where no setting fits."""
    if setting is None:
        return ""
    shown, hidden = images_per_second(setting)
    return f"{shown:,.0f} to {hidden:,.0f}" if f"{shown:,.0f}" != f"{hidden:,.0f}" else f"{shown:,.0f}"


def throughput(shape: Transformer, images: int, on_each: bool) -> str:
    """The best setting for each number of devices of each kind, gathered by layer where nothing else fits.

    Args:
        shape: the model.
        images: rows of a batch.
        on_each: whether on each device, or on all together.
    """
    rows = []
    for hardware in (H100, H200):
        for number in NUMBERS:
            total = images * number if on_each else images
            plain, gradual = (
                best(shape, hardware, number, total, method)
                or best(shape, hardware, number, total, method, True)
                for method in (False, True)
            )
            cells = [f"{number} {hardware.name}", f"{total:,}", rates(plain), rates(gradual)]
            if gradual is None:
                cells += ["does not fit"] + [""] * 5
            else:
                cells += [
                    layout(gradual),
                    gradual.kept.name,
                    str(gradual.num_microbatches),
                    f"{memory(gradual).total / 1e9:.0f}",
                    f"{share_of_peak(gradual):.0%}",
                    limit(gradual),
                ]
            rows.append(cells)
    head = ("devices", "images a step", "plain, images/s", "gradual, images/s", "gradual: parameters")
    return markdown((*head, "kept", "micro-batches", "GB", "share of peak", "most time"), rows)


def memory_table(shape: Transformer, images: int, num_devices: int = 64) -> str:
    """Where the bytes are, in GB on a device: gradual fine-tuning, products kept."""

    def setting(fsdp: int, by_layer: bool = False, base: int = 2) -> Setting:
        return Setting(shape, H100, num_devices, fsdp, images, 1, PRODUCTS, base=base, by_layer=by_layer)

    columns = {
        "a copy each": setting(1),
        "a copy each, base float32": setting(1, base=FLOAT),
        f"fsdp={DEVICES_PER_NODE}": setting(DEVICES_PER_NODE),
        f"fsdp={num_devices}": setting(num_devices),
        f"fsdp={num_devices}, by layer": setting(num_devices, by_layer=True),
    }
    found = [memory(each) for each in columns.values()]
    rows = [[name, *(f"{value[i] / 1e9:.1f}" for value in found)] for i, name in enumerate(Memory._fields)]
    rows.append(["**all**", *(f"**{value.total / 1e9:.1f}**" for value in found)])
    return markdown((f"{shape.name}, {images} images a device", *columns), rows)


def kept_table(shapes: Sequence[Transformer]) -> str:
    """What all blocks keep of an image, and what keeping less costs."""
    more = {
        ALL: "none",
        PRODUCTS: "norms, attention, activations of the forward pass",
        INPUTS: "a forward pass",
    }
    rows = [
        [kept.name, *(f"{shape.depth * kept_bytes(shape, kept) / 1e6:,.0f}" for shape in shapes), cost]
        for kept, cost in more.items()
    ]
    return markdown(("kept", *(f"{shape.name}, MB an image" for shape in shapes), "computed again"), rows)


def enough_images(shape: Transformer, hardware: Hardware, fsdp: int, num_devices: int = 64) -> int:
    """Images on a device, a multiple of 2, from which on a gradual step's work takes as long as its collectives."""
    images = 2
    while True:
        seconds = step_seconds(Setting(shape, hardware, num_devices, fsdp, images, 1, PRODUCTS))
        if seconds.products + seconds.memory >= seconds.links:
            return images
        images += 2


def collectives_table(shapes: Sequence[Transformer], num_devices: int = 64) -> str:
    """What a device sends in a gradual step over several nodes, and how much work hides it."""
    rows = []
    for shape in shapes:
        for fsdp in (1, DEVICES_PER_NODE, num_devices):
            setting = Setting(shape, H100, num_devices, fsdp, 2, 1, PRODUCTS)
            sent: Traffic = traffic(setting)
            rows.append(
                [
                    shape.name,
                    layout(setting),
                    f"{sent.nvlink / 1e9:.1f}",
                    f"{sent.network / 1e9:.2f}",
                    f"{1e3 * sent.seconds(H100):.0f}",
                    str(enough_images(shape, H100, fsdp, num_devices)),
                ]
            )
    head = ("model", "parameters", "NVLink, GB", "network, GB", "ms", "images a device that take as long")
    return markdown(head, rows)


def sensitivity_table(shape: Transformer, images: int, num_devices: int) -> str:
    """What the three assumed fractions are worth, the settings chosen anew for each."""
    rows = []
    for products, of_memory, links in (
        (0.7, 0.8, 0.8),
        (0.5, 0.8, 0.8),
        (0.7, 0.5, 0.8),
        (0.7, 0.8, 0.4),
        (1.0, 1.0, 1.0),
    ):
        hardware = H100._replace(products_reached=products, memory_reached=of_memory, links_reached=links)
        setting = best(shape, hardware, num_devices, images, True)
        assert setting is not None
        rows.append(
            [
                f"{products:.1f}",
                f"{of_memory:.1f}",
                f"{links:.1f}",
                rates(setting),
                f"{share_of_peak(setting):.0%}",
            ]
        )
    return markdown(("of products", "of memory", "of links", "gradual, images/s", "share of peak"), rows)


def checks_table(checks: Sequence[Check]) -> str:
    """Each number of the formulas beside the measured one."""

    def shown(value: float) -> str:
        return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"

    rows = [
        [
            each.what,
            shown(each.predicted),
            shown(each.measured),
            each.unit,
            f"{each.ratio - 1:+.1%}",
            each.note,
        ]
        for each in checks
    ]
    return markdown(("what", "formula", "measured", "unit", "measured against formula", "how"), rows)
