"""Own network, data and method: one run on every executor, a search over alpha and gamma, and the trained network."""

from optuna.distributions import FloatDistribution

import backlink_ray as bl

if __name__ == "__main__":
    base = bl.RunConfig(
        network="own_parts:network", dataset="own_parts:data", base="own_parts:Doubt", num_modules=2,
        propagation_length=1, epochs=5, batch_size=50, lr=0.1, validation_fraction=0.1,
    )  # fmt: skip
    for executor in ("local", "threads", "ray"):
        result = bl.run(base, f"runs/{executor}", executor=executor)
        print(f"{executor:8} error {result['test_error_pct']:.2f} %, weights {result['weights_sha256'][:12]}")
    space = bl.Space(alphas=(0.25, 0.5, 0.75), parameters={"gamma": FloatDistribution(0.0, 0.3)})
    found = bl.tune(base.replace(executor="threads"), space, num_samples=4, storage="results")
    best, error = found.best, found.best_result["test_error_pct"]
    print(
        f"best of {len(found.rows)}: alpha {best.alpha:g}, gamma {best.options['gamma']:.3f}, test error {error:.2f} %"
    )
    network, test = bl.load_network(found.best_folder), bl.load_dataset("own_parts:data").test
    wrong = bl.predict(network, test.prepared()).argmax(dim=1) != test.labels
    print(f"the same network, loaded: test error {100 * wrong.float().mean():.2f} %")
