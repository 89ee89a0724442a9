"""Cells of Table II on full CIFAR-10, four at once on one GPU, as run on 2026-11-27: OUT=DIR DATA=DIR python train.py SECONDS.

The first call had RUNS = [(4, 0, 0), (4, 4, 0), (1, 0, 0), (4, 2, 0)]."""
from common import *
from pathlib import Path
import backlink_ray.data.loader as L
L.augment = augment
from backlink_ray.data.datasets import load_dataset
from backlink_ray.paper.cells import published_error_pct
default_alpha = lambda l: 0.25 if l > 2 else 0.5  # paper.recipes.default_alpha, whose file needs tyro
from backlink_ray.runs.job import make_job
from backlink_ray.runs.options import RunOptions
from backlink_ray.train.checkpoint import weights_sha256
from backlink_ray.train.executor import EvaluationSum, forward_for_evaluation, to_cpu
from backlink_ray.data.loader import evaluation_batches

DEADLINE, SMOKE = float(sys.argv[1]), "--smoke" in sys.argv
NET, E = ("resnet14", 2) if SMOKE else ("resnet32", 200)
def config(k, l, seed, epochs):
    base = RunConfig(network=NET, dataset="cifar10-sample" if SMOKE else "cifar10", executor="local", epochs=epochs, seed=seed, batch_size=200 if SMOKE else 512)
    if k == 1: return base.replace(method="bp")
    if l == 0: return base.replace(method="gll", num_modules=k)
    return base.replace(num_modules=k, propagation_length=l, alpha=default_alpha(l))
CELLS = [(4, 0), (4, 2 if SMOKE else 4), (1, 0), (4, 1 if SMOKE else 2)]
CELLS = [(k, min(l, 1) if SMOKE else l) for k, l in CELLS]
RUNS = [(4, 0, 1), (4, 4, 1), (16, 0, 0), (16, 1, 0)]
data = load_dataset("cifar10-sample" if SMOKE else "cifar10", None if SMOKE else Path(os.environ["DATA"]), download=False)
print(round(time.time() - T0, 1), "data", data.digest, flush=True)

class Cell:
    def __init__(self, k, l, seed, epochs, mode):
        self.config = config(k, l, seed, epochs)
        job = make_job(self.config, data, RunOptions(output_dir=Path(OUT)))
        self.job, self.mode = job, mode
        self.captured = Captured(layout(job.modules, True), job.method, job.lr, seed=seed, mode=mode)
        self.curve = []
    def evaluate(self):
        total = EvaluationSum()
        with precision(self.mode):
            for x, y in evaluation_batches(self.job.evaluations["test"], 2000, self.job.mean, self.job.std, DEV):
                total.add(forward_for_evaluation(self.captured.trainer.modules, x).float(), y)
        return total.result()

BATCHES = {}
def batches(job, seed):
    if seed not in BATCHES:
        BATCHES[seed] = job.batches(torch.device(DEV), job.train)
    return BATCHES[seed]

def advance(cells, step, events):
    by_seed = {}
    for cell in cells:
        seed = cell.config.seed
        if seed not in by_seed:
            b = batches(cell.job, seed)
            x, y = b.images(step).contiguous(memory_format=torch.channels_last), b.labels(step)
            ready = torch.cuda.Event() if CUDA else None
            if CUDA: ready.record()
            by_seed[seed] = (x, y, ready)
        x, y, ready = by_seed[seed]
        if CUDA:
            s = cell.captured.stream
            s.wait_event(ready)
            with torch.cuda.stream(s): cell.captured.step(x, y)
            x.record_stream(s); y.record_stream(s)
        else:
            cell.captured.step(x, y)
    if CUDA:
        done = torch.cuda.Event(); 
        for cell in cells: torch.cuda.current_stream().wait_stream(cell.captured.stream) if len(events) % 8 == 7 else None
        done.record(); events.append(done)
        if len(events) > 16: events[-16].synchronize()

def round_ms(cells, steps=24):
    events = []
    for s in range(7): advance(cells, s, events)
    if CUDA: torch.cuda.synchronize()
    start = time.perf_counter()
    for s in range(7, 7 + steps): advance(cells, s, events)
    if CUDA: torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - start) / steps

def choose():
    """Most runs at 200 epochs, tf32 before bf16 where both fit equally many; else 100 epochs of four."""
    ms = {}
    for mode in ("bf16",):
        for n in (4,):
            try:
                cells = [Cell(*run, E, mode) for run in RUNS[:n]]
                ms[mode, n] = round_ms(cells, 4 if SMOKE else 24)
                emit("plan", precision=mode, runs=n, round_ms=ms[mode, n])
                del cells
                if CUDA: torch.cuda.empty_cache()
            except Exception as e:
                import traceback; traceback.print_exc(); emit("errors", name=f"choose {mode} {n}", error=str(e)[:300]); break
            if ms[mode, n] * 97 * E / 1e3 > 1.3 * DEADLINE: break
    left = DEADLINE - (time.time() - T0) - 12
    fits = lambda mode, n, epochs: (mode, n) in ms and ms[mode, n] * len(data.train) // data_batch * epochs / 1e3 * 1.04 + 0.02 * epochs < left
    data_batch = 200 if SMOKE else 512
    for epochs in (E, E // 2):
        for n in (10, 8, 6, 4):
            for mode in ("bf16",):
                if fits(mode, n, epochs): return mode, n, epochs
    return "bf16", 4, E // 2

def save(cells, note):
    for i in range(0, len(cells), 4):
        torch.save([{"config": c.config.identity, "run_id": c.config.run_id, "precision": c.mode, "memory_format": "channels_last", "curve": c.curve,
                     "state": vars_of(to_cpu(c.captured.trainer.state())), "note": note} for c in cells[i:i + 4]], f"{OUT}/cells_{i // 4}.pt")
def vars_of(s): return {"weights": s.weights, "momentum": s.momentum, "step": s.step}

def main():
    mode, n, epochs = "bf16", 4, 100
    BATCHES.clear()
    emit("plan", chosen=True, precision=mode, runs=n, epochs=epochs, seconds_left=DEADLINE - (time.time() - T0))
    cells = [Cell(*run, epochs, mode) for run in RUNS[:n]]
    steps = len(cells[0].job.train) // cells[0].config.batch_size
    started, events, cut = time.time(), [], False
    for epoch in range(1, epochs + 1):
        for step in range((epoch - 1) * steps, epoch * steps): advance(cells, step, events)
        del events[:]
        if CUDA: torch.cuda.synchronize()
        losses = [c.captured.losses.tolist() for c in cells]
        if epoch % 10 == 0 or epoch in (1, epochs) or SMOKE:
            for c, loss in zip(cells, losses):
                e = c.evaluate(); c.curve.append({"epoch": epoch, "test_error_pct": e.error_pct, "test_loss": e.loss, "last_local_loss": loss, "seconds": time.time() - started})
            print(round(time.time() - T0, 1), "epoch", epoch, [c.curve[-1]["test_error_pct"] for c in cells], flush=True)
        if epoch % 50 == 0: save(cells, f"after epoch {epoch} of {epochs}")
        if time.time() - T0 > DEADLINE - 6: cut = True; break
    save(cells, "cut off by the time" if cut else "finished")
    for c in cells:
        if not c.curve or c.curve[-1]["epoch"] != epoch:
            e = c.evaluate(); c.curve.append({"epoch": epoch, "test_error_pct": e.error_pct, "test_loss": e.loss, "seconds": time.time() - started})
        emit("cells", run_id=c.config.run_id, identity=c.config.identity, K=c.config.num_modules, l=c.config.propagation_length, alpha=c.config.alpha, method=c.config.method, seed=c.config.seed, epochs=epochs, epochs_done=epoch,
             precision=mode, memory_format="channels_last", finished=not cut, test_error_pct=c.curve[-1]["test_error_pct"], paper=published_error_pct(c.config), dataset_digest=data.digest,
             weights_sha256=weights_sha256(to_cpu(c.captured.trainer.state())), curve=c.curve)
os.makedirs(OUT, exist_ok=True); torch.backends.cudnn.benchmark = True
main()
