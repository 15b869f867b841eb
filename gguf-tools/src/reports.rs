//! `--report`: the pages of the verbs that make and certify exits.

use std::path::Path;

use gguf_tools::add_heads::Made;
use gguf_tools::report::{self, Page};

use crate::certify::Certificate;

/// The page of `train`, or of `add-heads` with its certificate.
pub fn made(made: &Made, certificate: Option<&Certificate>, output: &Path, folder: &Path) -> anyhow::Result<()> {
    let layers: Vec<String> = made.meta.layers.iter().map(ToString::to_string).collect();
    let layers = if layers.is_empty() { "none: the screen alone".to_string() } else { layers.join(", ") };
    let mut page = Page::new(format!("Exits for {}", made.meta.base.name))
        .fact("File", name(output))
        .fact("Exits after blocks", layers)
        .fact("Metric", made.meta.metric.name())
        .fact("Screen", format!("rank {}, {} candidates", made.chosen.rank, made.chosen.count))
        .fact("Judged on", format!("{} tokens of {} prompts", made.n_tokens, made.n_prompts));
    if let Some(certificate) = certificate {
        page = with_certificate(page, certificate)?;
    }
    write(&page.sections(report::trained(made)?), folder)
}

/// The page of `calibrate`.
pub fn calibrated(certificate: &Certificate, output: &Path, folder: &Path) -> anyhow::Result<()> {
    let title = format!("Certificate for {}", certificate.confirmed.meta.base.name);
    let page = Page::new(title).fact("File", name(output));
    write(&with_certificate(page, certificate)?, folder)
}

fn with_certificate(page: Page, certificate: &Certificate) -> anyhow::Result<Page> {
    let mut page = page.fact("Prompts to certify on", certificate.n_prompts.to_string());
    if let Some(calibration) = &certificate.confirmed.meta.calibration {
        page = page
            .fact("They are", calibration.prompts.clone())
            .fact("Sampler", calibration.sampler.clone())
            .fact("K/V policy", calibration.kv_policy.name())
            .fact("Tokens of a batch, drafts included", calibration.batch_width.to_string())
            .fact("Delta", format!("{}", calibration.delta))
            .fact("Date", calibration.date.clone());
    }
    let sections = report::calibrated(&certificate.confirmed, certificate.samples.clone())?;
    Ok(page.sections(sections))
}

fn name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Writes a page and says where it is.
pub fn write(page: &Page, folder: &Path) -> anyhow::Result<()> {
    eprintln!("gguf-tools: {} is written", page.write(folder)?.display());
    Ok(())
}
