//! The schedule of steps, and how it is shortened to the time there is.

use super::*;

#[test]
fn the_step_size_rises_and_falls_to_nothing() {
    let rates: Vec<f64> = (0..200).map(|step| schedule(step, 200)).collect();
    assert!(rates[..20].is_sorted() && (rates[19] - 1.0).abs() < 1e-9);
    assert!(rates[20..].is_sorted_by(|a, b| a >= b) && rates[199] < 1e-3);
    assert!((0..3).all(|step| schedule(step, 3) > 0.0));
}

#[test]
fn training_is_shortened_to_the_time_there_is() {
    let of_step = Duration::from_millis(100);
    assert_eq!(shortened(1000, of_step, None), 1000);
    assert!((80..=86).contains(&shortened(1000, of_step, Some(Instant::now() + Duration::from_secs(10)))));
    assert_eq!(shortened(1000, of_step, Some(Instant::now())), TIMED + 1);
}
