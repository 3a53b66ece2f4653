"""Pictures and films: what is drawn is what was there."""

import shutil
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
from builders import L

import ridurre
from ridurre import figures
from ridurre.errors import RequestError, UnknownLayerError
from ridurre.plots import panels
from ridurre.plots.panels import KEPT, REMOVED, ZERO, as_image, coarser, short_names
from ridurre.snapshots import Snapshot

pytest.importorskip("matplotlib")
images = pytest.importorskip("PIL.Image")
SCREENSHOTS = Path(__file__).parents[1] / "build" / "screenshots"


def network(inputs=3, outputs=5):
    """A kernel of 2 × 3 taps, and one of outputs·7 weights."""
    x = keras.Input((4, 4, inputs))
    y = L.Conv2D(outputs, (2, 3), name="conv")(x)
    return keras.Model(x, L.Dense(7, name="dense")(L.GlobalAveragePooling2D()(y)))


def masked(model, rng, level):
    """Random weights of a model, of which a fraction is zero."""
    for name in ("conv", "dense"):
        kernel = model.get_layer(name).kernel
        value = rng.normal(size=kernel.shape) * (rng.random(kernel.shape) >= level)
        kernel.assign(value)
    return model


def record(folder, *models):
    """A recording, without training."""
    for number, model in enumerate(models):
        snapshot = Snapshot.of(model)
        Snapshot(snapshot.parts, number).save(folder / f"record_{number:06d}.npz")
    return ridurre.Recording(folder)


@pytest.fixture
def recording(tmp_path, rng):
    return record(tmp_path, *(masked(network(), rng, level) for level in (0, 0.3, 0.6, 0.9)))


def color(text):
    return np.array([int(text[i : i + 2], 16) for i in (1, 3, 5)])


def cells(picture, axes, shape):
    """The colour in the middle of every cell of a panel, ``(rows, columns, 3)``."""
    height, width = picture.shape[:2]
    (x0, y0), (x1, y1) = axes.get_position().get_points()  # fractions, from below
    rows = (1 - y1 + (y1 - y0) * (np.arange(shape[0]) + 0.5) / shape[0]) * height
    columns = (x0 + (x1 - x0) * (np.arange(shape[1]) + 0.5) / shape[1]) * width
    return picture[np.ix_(rows.astype(int), columns.astype(int))]


def nearest(found):
    """0 where a colour is that of a zero, 1 that of a weight, 2 that of a removed one."""
    colors = np.stack([color(c) for c in (ZERO, KEPT, REMOVED)])
    return np.abs(found[..., None, :].astype(int) - colors).sum(-1).argmin(-1)


def frames(path):
    with images.open(path) as film:
        found, durations = [], []
        for number in range(film.n_frames):
            film.seek(number)
            found.append(np.asarray(film.convert("RGB")))
            durations.append(film.info["duration"])
    return found, durations


def test_a_cell_of_input_and_output_holds_the_taps(rng):
    keep = rng.random((2, 3, 5, 7)) < 0.5
    image = as_image(keep, keep.shape)
    assert image.shape == (5 * 2, 7 * 3)
    for h, w, i, o in np.ndindex(keep.shape):
        assert image[2 * i + h, 3 * o + w] == keep[h, w, i, o]


def test_kernels_of_other_ranks(rng):
    dense, line, solid = (rng.random(s) < 0.5 for s in ((3, 5), (2, 3, 5), (2, 3, 4, 5, 7)))
    assert np.array_equal(as_image(dense, (3, 5)), dense)
    assert as_image(line, line.shape)[1, 2 * 3 + 1] == line[1, 1, 3]
    assert as_image(solid, solid.shape)[4 * 6 + 3 * 1 + 2, 6 * 4 + 3] == solid[1, 2, 3, 4, 6]
    assert as_image(np.ones(5, bool), (5,)).shape == (1, 5)


def test_what_was_removed_is_no_number():
    image = as_image(np.ones((1, 1, 2, 3), bool), (1, 1, 3, 5))
    assert np.isnan(image[2]).all()
    assert np.isnan(image[:, 3:]).all()
    assert (image[:2, :3] == 1).all()


def test_large_kernels_are_means_over_blocks():
    image = np.arange(35, dtype=float).reshape(5, 7)
    image[4] = np.nan
    found = coarser(image, 3)
    assert found.shape == (3, 3)
    assert found[0, 0] == image[:2, :3].mean()
    assert found[1, 2] == image[2:4, 6:].mean()
    assert np.isnan(found[2]).all()
    assert coarser(np.ones((1000, 3))).shape[0] <= panels.CELLS


def test_a_film_shows_which_weights_went(recording):
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    path = recording.animate(SCREENSHOTS / "masks.gif", fps=5)
    found, durations = frames(path)
    assert len(found) == len(recording) == 4
    assert durations[:3] == [200] * 3
    assert durations[3] > 1000  # it rests on the last one
    assert len({frame.tobytes() for frame in found}) == 4
    # The panels stand where they stand in a picture that is laid out in the same way.
    figure = recording.plot_masks(at=0)
    figure.dpi = 100
    figure.draw_without_rendering()
    shapes = {"conv": (3 * 2, 5 * 3), "dense": (5, 7)}
    for number, frame in enumerate(found):
        images.fromarray(frame).save(SCREENSHOTS / f"masks_{number}.png")
        masks = recording.masks(number)
        for axes, (name, shape) in zip(figure.axes, shapes.items(), strict=True):
            expected = as_image(masks[f"{name}/kernel"], masks[f"{name}/kernel"].shape)
            assert np.array_equal(nearest(cells(frame, axes, shape)), expected), (name, number)


def test_a_film_of_weights_has_common_axes(recording, tmp_path):
    found, _ = frames(recording.animate(tmp_path / "weights.gif", what="weights"))
    assert len({frame.tobytes() for frame in found}) == 4
    for name in ("conv", "dense"):
        one = [recording.plot_weights(at=i, layers=name).axes[0] for i in range(4)]
        assert len({axes.get_xlim() for axes in one}) == 1
        assert len({axes.get_ylim() for axes in one}) == 1
        drawn = [axes.patches[0].get_data() for axes in one]
        kept = [np.count_nonzero(recording.masks(i)[f"{name}/kernel"]) for i in range(4)]
        assert [values.sum() for values, _, _ in drawn] == kept


def test_removed_channels_have_a_colour_of_their_own(tmp_path, rng):
    small = masked(network(outputs=3), rng, 0)
    found = record(tmp_path, masked(network(), rng, 0), small).plot_masks()
    drawn = found.axes[0].get_images()[0].get_array()
    assert np.ma.getmaskarray(drawn)[0].tolist() == [False] * 9 + [True] * 6
    assert "40.0% gone, 2×3×3×3" in found.axes[0].get_title()
    picture = np.asarray(pixels(found))
    assert nearest(cells(picture, found.axes[0], (6, 15)))[0].tolist() == [1] * 9 + [2] * 6


def pixels(figure):
    from io import BytesIO

    buffer = BytesIO()
    figure.savefig(buffer, dpi=100)
    return images.open(buffer).convert("RGB")


def test_a_model_is_drawn_like_its_record(recording, rng, tmp_path):
    model = masked(network(), rng, 0.5)
    path = tmp_path / "now.png"
    figure = ridurre.plots.masks(model, path)
    with images.open(path) as picture:
        assert picture.size[0] > 300
    masks = ridurre.Masks.of(model)
    assert bytes_of(figure) == bytes_of(ridurre.plots.masks(masks))
    for axes, keep in zip(figure.axes, masks.values(), strict=True):
        drawn = np.asarray(axes.get_images()[0].get_array())
        assert np.array_equal(drawn, as_image(keep, keep.shape))
        assert f"{1 - keep.mean():.1%} zero" in axes.get_title()
    weights = ridurre.plots.weights(model, layers="dense")
    counts = weights.axes[0].patches[0].get_data()[0]
    assert counts.sum() == np.count_nonzero(np.array(model.get_layer("dense").kernel))


def bytes_of(figure):
    return pixels(figure).tobytes()


def test_sparsity_over_epochs(recording, tmp_path):
    lines = recording.plot_sparsity(tmp_path / "sparsity.png").axes[0].get_lines()
    assert [line.get_label() for line in lines] == ["conv", "dense", "all"]
    assert lines[0].get_xdata().tolist() == [0, 1, 2, 3]
    assert lines[1].get_ydata().tolist() == recording.sparsity["dense/kernel"]
    assert lines[2].get_ydata().tolist() == recording.total_sparsity
    assert (tmp_path / "sparsity.png").stat().st_size > 1000


def test_epochs_that_begin_anew_are_not_an_axis(tmp_path):
    record(tmp_path, network(), network())
    Snapshot(Snapshot.of(network()).parts, 0).save(tmp_path / "record_000002.npz")
    axes = ridurre.Recording(tmp_path).plot_sparsity().axes[0]
    assert axes.get_lines()[0].get_xdata().tolist() == [0, 1, 2]
    assert axes.get_xlabel() == "number of the record"


def test_layers_are_chosen_by_name(recording, tmp_path):
    assert len(recording.plot_masks(layers="dense").axes) == 1
    assert len(recording.plot_masks(layers=["dense/kernel", "conv"]).axes) == 2
    with pytest.raises(UnknownLayerError, match="'cnv'. Did you mean 'conv'"):
        recording.animate(tmp_path / "masks.gif", layers="cnv")
    assert not (tmp_path / "masks.gif").exists()


def test_names_over_pictures():
    long = "backbone_of_the_network_block_3_expand_conv/kernel"
    assert short_names(["a/kernel", "b/kernel"]) == {"a/kernel": "a", "b/kernel": "b"}
    assert short_names(["a/kernel", "a/other"])["a/other"] == "a/other"
    assert short_names([long])[long] == "backbone_of…_expand_conv"


def test_names_with_dollars_are_drawn_as_they_are(rng):
    masks = ridurre.Masks({"_a$x$_/kernel": rng.random((3, 5)) < 0.5})
    bytes_of(ridurre.plots.masks(masks))


@pytest.mark.skipif(not shutil.which("ffmpeg"), reason="ffmpeg is not installed")
def test_an_mp4(recording, tmp_path):
    path = recording.animate(tmp_path / "masks.mp4", layers="dense")
    assert path.read_bytes()[4:8] == b"ftyp"


def test_what_is_missing_is_named(recording, tmp_path, monkeypatch):
    from matplotlib.animation import FFMpegWriter

    for arguments, message in (
        (("masks.avi",), r"\.gif or \.mp4.*masks\.avi"),
        (("masks.gif", "filters"), "'masks', 'weights'"),
    ):
        with pytest.raises(RequestError, match=message):
            recording.animate(*arguments)
    with pytest.raises(RequestError, match="fps above 0"):
        recording.animate("masks.gif", fps=0)
    monkeypatch.setattr(FFMpegWriter, "isAvailable", lambda: False)
    with pytest.raises(RequestError, match="ffmpeg.*apt install.*gif"):
        recording.animate(tmp_path / "masks.mp4")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(RequestError, match="pip install matplotlib"):
        recording.plot_masks()


def test_a_film_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "film.gif"
    path.write_bytes(b"old")
    figure = figures.new_figure(1, 1)

    def draw(number):
        if number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        figures.filmed(figure, draw, 4, path, 5)
    assert [p.name for p in tmp_path.iterdir()] == ["film.gif"]
    assert path.read_bytes() == b"old"


def test_a_path_without_an_ending_is_a_png(recording, tmp_path):
    recording.plot_masks(tmp_path / "masks", layers="dense")
    assert [p.name for p in tmp_path.glob("masks*")] == ["masks.png"]
