"""Correctness, speed and memory on one GPU, as it was run on 2026-11-27: OUT=DIR python measure.py [SECONDS]."""
from common import *
import statistics, subprocess
from pathlib import Path
from backlink_ray.benchmarks.checks import gradient_errors, executor_differences
from backlink_ray.benchmarks.memory import memory_rows, peak_of_step_mib
from backlink_ray.benchmarks.speed import compare, plain_loop
from backlink_ray.train.executor import LocalExecutor
SMOKE = not CUDA
NET = "resnet8" if SMOKE else "resnet32"
KS = (2, 3) if SMOKE else (4, 16)
B = 16 if SMOKE else 512

def correctness():
    for row in gradient_errors(NET, DEV):
        emit("correctness", network=NET, **row)
    for row in executor_differences(NET, DEV, 8 if SMOKE else 128):
        emit("correctness", network=NET, **row)
    # reduced precision against float64 on the CPU, batch 64
    x = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(3)); y = torch.arange(64) % 10
    config = RunConfig(network=NET, num_modules=2, propagation_length=1, alpha=0.5)
    method = build_method(config)
    exact = gradients([m.double() for m in modules_of(config)], method, x.double(), y)
    for mode, cl in (("fp32", False), ("fp32", True), ("tf32", False), ("tf32", True), ("bf16", False), ("bf16", True)):
        with precision(mode):
            found = gradients(layout(modules_of(config), cl), method, x.to(DEV), y.to(DEV))
        errors = {n: float((found[n].double().cpu() - g).norm() / (g.norm() + 1e-30)) for n, g in exact.items()}
        total = sum(float((found[n].double().cpu() - g).pow(2).sum()) for n, g in exact.items()) ** 0.5 / sum(float(g.pow(2).sum()) for g in exact.values()) ** 0.5
        emit("correctness", network=NET, check="gradient against float64 on the CPU", precision=mode, channels_last=cl, relative_error_of_all=total,
             largest_of_a_tensor=max(errors.values()), median_of_tensors=statistics.median(errors.values()))
    # deterministic mode: twice the same weights?
    torch.use_deterministic_algorithms(True, warn_only=True); torch.backends.cudnn.deterministic = True
    def weights(mode, cl):
        job = job_for(config.replace(batch_size=64), random_images(256), DEV)
        with precision(mode):
            t = Trainer(layout(job.modules, cl), job.method, 0.1); b = job.batches(torch.device(DEV), job.train)
            for s in range(8): t.step(b.images(s), b.labels(s))
        return torch.cat([w.double().flatten() for w in t.state().weights.values()])
    for mode, cl in (("fp32", False), ("bf16", True)):
        a, b = weights(mode, cl), weights(mode, cl)
        emit("correctness", network=NET, check="deterministic algorithms, 8 steps twice", precision=mode, channels_last=cl, equal_bits=bool(torch.equal(a, b)))
    torch.use_deterministic_algorithms(False); torch.backends.cudnn.deterministic = False
    # graph capture against eager
    for mode in ("tf32", "bf16"):
        job = job_for(config.replace(batch_size=64), random_images(256), DEV); b = job.batches(torch.device(DEV), job.train)
        g = Captured(layout(job.modules, True), job.method, lambda s: 0.1, mode=mode)
        job2 = job_for(config.replace(batch_size=64), random_images(256), DEV)
        e = Trainer(layout(job2.modules, True), job2.method, 0.1)
        for s in range(8):
            g.step(b.images(s), b.labels(s))
            with precision(mode): e.step(b.images(s), b.labels(s))
        w = e.state().weights
        emit("correctness", network=NET, check="CUDA graph against eager, 8 steps", precision=mode,
             relative_difference=max(float((v.double() - w[n].double()).norm() / (w[n].double().norm() + 1e-30)) for n, v in g.trainer.state().weights.items()))
    torch.manual_seed(0)

def configs(network, heads="fc"):
    base = RunConfig(network=network, method="bp", batch_size=B, head=heads)
    yield "BP", base
    for k in KS:
        yield f"GLL K={k}", base.replace(method="gll", num_modules=k)
        yield f"BackLink K={k} l=1", base.replace(method="backlink", num_modules=k, propagation_length=1, alpha=0.5)
    if network == "resnet32":
        yield "BackLink K=4 l=4", base.replace(method="backlink", num_modules=4, propagation_length=4, alpha=0.5)

def speed(network, steps, rounds, modes):
    images = random_images(2 * B)
    for mode, cl, kind in modes:
        guarded(f"speed {network} {mode} {kind}", speed_of, network, steps, rounds, images, mode, cl, kind)

def speed_of(network, steps, rounds, images, mode, cl, kind):
    torch.backends.cudnn.benchmark = cl
    if True:
        with precision(mode):
            runs = {}
            net_loop = plain_loop(network, DEV, B)
            if not cl and kind == "eager":
                runs["plain eager BP"] = net_loop
            for name, config in configs(network):
                job = job_for(config, images, DEV)
                b = job.batches(torch.device(DEV), job.train)
                x, y = b.images(0), b.labels(0)
                modules = layout(job.modules, cl)
                if kind == "eager":
                    t = Trainer(modules, job.method, 0.01)
                    def run(n, t=t, x=x, y=y):
                        for _ in range(n): t.step(x, y)
                else:
                    t = Captured(modules, job.method, lambda s: 0.01, mode=mode)
                    for _ in range(6): t.step(x, y)
                    def run(n, t=t, x=x, y=y):
                        for _ in range(n): t.step(x, y)
                runs[name] = run
        def within(f):
            def g(n):
                with precision(mode): f(n)
            return g
        for row in compare({n: within(f) for n, f in runs.items()}, B, DEV, steps, rounds):
            emit("speed", network=network, batch_size=B, precision=mode, channels_last=cl, cudnn_benchmark=cl, kind=kind, **row)

def together():
    """1, 2, 4 runs at once on streams of one process, graphs; and as processes, eager."""
    images = random_images(2 * B)
    config = RunConfig(network=NET, num_modules=KS[0], propagation_length=1, alpha=0.5, batch_size=B)
    for mode in ("tf32", "bf16"):
        made = []
        for _ in range(4):
            job = job_for(config, images, DEV); b = job.batches(torch.device(DEV), job.train)
            t = Captured(layout(job.modules, True), job.method, lambda s: 0.01, mode=mode); x, y = b.images(0), b.labels(0)
            for _ in range(6): t.step(x, y)
            made.append((t, x, y))
        for n in (1, 2, 4):
            times = []
            for r in range(4):
                if CUDA: torch.cuda.synchronize()
                s = time.perf_counter()
                for _ in range(20):
                    for t, x, y in made[:n]:
                        with torch.cuda.stream(t.stream) if CUDA else contextlib.nullcontext(): t.step(x, y)
                if CUDA: torch.cuda.synchronize()
                times.append((time.perf_counter() - s) / 20)
            emit("together", run="BackLink l=1", K=KS[0], network=NET, kind="graph, streams of one process", precision=mode, channels_last=True, runs=n, round_ms=1e3 * statistics.median(times[1:]), images_per_s_all=n * B / statistics.median(times[1:]), n=3)

def processes():
    for n in (1, 2, 4):
        ps = [subprocess.Popen([sys.executable, str(Path(__file__).with_name("one.py")), str(n), str(i), str(B), NET, str(KS[0])], stdout=subprocess.PIPE, text=True) for i in range(n)]
        rates = [float(p.communicate()[0].strip().splitlines()[-1]) for p in ps]
        emit("together", run="BackLink l=1", K=KS[0], network=NET, kind="eager, processes", precision="tf32", channels_last=True, runs=n, images_per_s_each=rates, images_per_s_all=sum(rates))

def memory(network):
    for row in memory_rows(network, DEV, B):
        emit("memory", batch_size=B, head="conv", method="gll" if not row["l"] and row["K"] > 1 else "bp" if row["K"] == 1 else "backlink", **row)
    for k in KS[:1] if SMOKE else (2, 4, 8, 16):
        c = RunConfig(network=network, head="conv", method="infopro", num_modules=k, batch_size=B)
        emit("memory", batch_size=B, head="conv", method="infopro", network=network, K=k, l=0, peak_memory_mib=peak_of_step_mib(c, DEV))

def compiled():
    """plain loop compiled, as a yardstick."""
    from backlink_ray.nets.build import build_network
    for mode in ("bf16",):
        net = build_network(NET).to(DEV).to(memory_format=torch.channels_last); sgd = torch.optim.SGD(net.parameters(), 0.01, 0.9, nesterov=True, weight_decay=1e-4, fused=CUDA)
        x = torch.rand(B, 3, 32, 32, device=DEV).to(memory_format=torch.channels_last); y = torch.arange(B, device=DEV) % 10
        start = time.time(); model = torch.compile(net, mode="max-autotune-no-cudagraphs" if False else "default")
        def run(n):
            for _ in range(n):
                with torch.autocast(DEV, dtype=torch.bfloat16):
                    loss = F.cross_entropy(model(x), y)
                sgd.zero_grad(); loss.backward(); sgd.step()
        run(2)
        if CUDA: torch.cuda.synchronize()
        took = time.time() - start
        for row in compare({"plain BP, compiled": run}, B, DEV, 20, 5):
            emit("speed", network=NET, batch_size=B, precision=mode, channels_last=True, kind="compile", compile_s=took, **row)

if __name__ == "__main__":
    os.makedirs(OUT, exist_ok=True)
    limit = float(sys.argv[1]) if len(sys.argv) > 1 else 280
    S, R = (2, 2) if SMOKE else (15, 5)
    plan = [("correctness", correctness, ()),
            ("speed32", speed, (NET, S, R, [("tf32", False, "eager"), ("bf16", True, "graph"), ("tf32", True, "graph"), ("fp32", False, "eager"), ("tf32", True, "eager"), ("bf16", True, "eager"), ("fp32", True, "graph")])),
            ("memory32", memory, (NET,)),
            ("together", together, ()),
            ("memory110", memory, ("resnet14" if SMOKE else "resnet110",)),
            ("speed110", speed, ("resnet14" if SMOKE else "resnet110", max(2, S // 3), 3, [("tf32", False, "eager"), ("bf16", True, "graph")])),
            ("processes", processes, ()),
            ("compiled", compiled, ())]
    for name, f, a in plan:
        if time.time() - T0 > limit - 25:
            emit("errors", name=name, error="left out: no time"); continue
        s = time.time(); guarded(name, f, *a); print("##", name, round(time.time() - s, 1), "s", flush=True)
        if CUDA: torch.cuda.empty_cache()
