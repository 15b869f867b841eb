//! From a metric to the probability of agreement: a monotone map, fitted by pooling adjacent violators.
//!
//! Larger metrics never mean less agreement. The fit is the least-squares one among all such maps (Ayer et al. 1955),
//! over groups of neighbouring observations so that a map has few points. The map is for ordering and for messages; no
//! guarantee rests on it, because thresholds are certified on other prompts than those that it was fitted on.

use offramp::gguf::exits::ConfidenceMap;

/// The most points of a map.
pub const MAX_POINTS: usize = 256;

/// One pool of neighbouring observations.
#[derive(Clone, Copy)]
struct Pool {
    n: f64,
    metric: f64,
    agreement: f64,
}

impl Pool {
    fn merged(self, other: Pool) -> Pool {
        let n = self.n + other.n;
        let mean = |a: f64, b: f64| (a * self.n + b * other.n) / n;
        Pool { n, metric: mean(self.metric, other.metric), agreement: mean(self.agreement, other.agreement) }
    }
}

/// Fits a map to observations `(metric, agreed)`. Those without a number for a metric are left out; the map of none is
/// empty, which means "never".
pub fn fit(observations: &[(f32, bool)]) -> ConfidenceMap {
    let mut sorted: Vec<(f32, bool)> = observations.iter().copied().filter(|(metric, _)| metric.is_finite()).collect();
    sorted.sort_by(|a, b| a.0.total_cmp(&b.0));
    let group = sorted.len().div_ceil(MAX_POINTS).max(1);
    let mut pools: Vec<Pool> = Vec::new();
    let mut rest = sorted.as_slice();
    while let Some(&(_, _)) = rest.first() {
        let mut end = group.min(rest.len());
        // Equal metrics are one observation of their mean: a map cannot tell them apart.
        while end < rest.len() && rest[end].0 == rest[end - 1].0 {
            end += 1;
        }
        let (members, others) = rest.split_at(end);
        rest = others;
        let n = members.len() as f64;
        let metric = members.iter().map(|(metric, _)| f64::from(*metric)).sum::<f64>() / n;
        let agreement = members.iter().filter(|(_, agreed)| *agreed).count() as f64 / n;
        pools.push(Pool { n, metric, agreement });
        while let [.., before, last] = pools.as_slice() {
            if before.agreement < last.agreement {
                break;
            }
            let pooled = before.merged(*last);
            pools.truncate(pools.len() - 2);
            pools.push(pooled);
        }
    }
    let mut map = ConfidenceMap::default();
    for pool in pools {
        let metric = pool.metric as f32;
        // Two means that round to the same float would make a step of no width.
        if map.metric.last().is_none_or(|last| *last < metric) {
            map.metric.push(metric);
            map.agreement.push(pool.agreement as f32);
        }
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn violators_are_pooled_into_their_mean() {
        let map = fit(&[(1.0, false), (2.0, true), (3.0, false), (4.0, true), (5.0, true)]);
        assert_eq!(map.agreement, [0.0, 0.5, 1.0]);
        assert_eq!(map.metric, [1.0, 2.5, 4.5]);
        assert_eq!(map.agreement_at(0.0), 0.0);
        assert_eq!(map.agreement_at(2.5), 0.5);
        assert_eq!(map.agreement_at(9.0), 1.0);
    }

    #[test]
    fn equal_metrics_are_not_told_apart() {
        let map = fit(&[(1.0, false), (1.0, true), (1.0, true), (1.0, false)]);
        assert_eq!((map.metric.as_slice(), map.agreement.as_slice()), ([1.0].as_slice(), [0.5].as_slice()));
    }

    #[test]
    fn no_observation_means_never() {
        assert_eq!(fit(&[]), ConfidenceMap::default());
        assert_eq!(fit(&[(f32::NAN, true), (f32::INFINITY, true)]).agreement_at(3.0), 0.0);
    }

    #[test]
    fn many_observations_give_few_ascending_points_near_the_truth() {
        // Agreement grows as the metric: observation i of 100,000 agrees where the golden-ratio sequence is below it.
        let observations: Vec<(f32, bool)> = (0..100_000)
            .map(|i| {
                let metric = f64::from(i) / 100_000.0;
                (metric as f32, (f64::from(i) * 0.618_033_988_75).fract() < metric)
            })
            .collect();
        let map = fit(&observations);
        assert!(map.metric.len() <= MAX_POINTS + 1 && map.metric.is_sorted_by(|a, b| a < b));
        assert!(map.agreement.is_sorted());
        for metric in [0.1, 0.5, 0.9] {
            assert!((map.agreement_at(metric) - metric).abs() < 0.02, "{metric}: {}", map.agreement_at(metric));
        }
    }
}
