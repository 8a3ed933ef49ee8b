//! `neuron bench` on a made-up model that is over in a moment: what is measured, not how fast it is.

use clap::Parser;
use neuron::bench::{Figure, Report, run};
use neuron::config::{Cli, Command};

fn parse(arguments: &str) -> Result<Cli, String> {
    Cli::try_parse_from(["neuron", "bench"].into_iter().chain(arguments.split_whitespace())).map_err(|error| error.to_string())
}

async fn report(arguments: &str) -> Report {
    let Some(Command::Bench(args)) = parse(arguments).expect("a command line").command else { panic!("not a measurement") };
    args.check().expect("a possible measurement");
    run(&args).await.expect("a report")
}

const SMALL: &str = "--random tiny --batch 1 --context 40 --prefill 70 --concurrency 2 --tokens 8 --rounds 1 --step-tokens 64";

#[tokio::test(flavor = "multi_thread")]
async fn every_part_has_its_figures_and_each_its_limit() {
    let report = report(&format!("{SMALL} --store")).await;
    let cases: Vec<_> = report.figures.iter().map(|figure| (figure.what, figure.streams, figure.prompt_tokens, figure.unit)).collect();
    let expected = [
        ("decode", 1, 40, "tok/s"),
        ("prefill", 1, 70, "tok/s"),
        ("serve", 2, 128, "tok/s"),
        ("first token", 2, 128, "s"),
        ("load", 1, 16, "s"),
        ("swap", 1, 16, "s"),
    ];
    assert_eq!(cases, expected);
    let sound = |figure: &Figure| figure.value > 0.0 && figure.value.is_finite() && figure.share.is_none_or(|share| share > 0.0);
    assert!(report.figures.iter().all(sound), "{report:?}");
    assert!(report.figures.iter().all(|figure| figure.limit.is_some() == (figure.what != "first token")), "{report:?}");
    assert_eq!((report.parameters, &report.skipped), (4_197_120, &vec![]));
    let json = serde_json::to_value(&report).unwrap();
    assert_eq!(json["figures"][0]["what"], "decode");
    let table = report.to_string();
    assert!(table.contains("tiny, made up on cpu-0") && table.contains("GFLOP/s"), "{table}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_measured_is_named() {
    let report = report(&format!("{SMALL} --only decode,load --context 50000")).await;
    assert_eq!(report.figures.iter().map(|figure| figure.what).collect::<Vec<_>>(), ["decode"]);
    assert!(report.skipped[0].starts_with("decode: 1 x 50008 tokens need"), "{:?}", report.skipped);
    assert!(report.skipped[1].contains("--store"), "{:?}", report.skipped);
}

#[test]
fn a_measurement_is_of_a_folder_or_of_a_shape() {
    for (arguments, expected) in [
        ("", "FOLDER"),
        ("--random qwen", "there is no shape `qwen`"),
        ("./model --random tiny", "cannot be used with"),
        ("./model --only speed", "invalid value"),
    ] {
        let error = parse(arguments).unwrap_err();
        assert!(error.contains(expected), "{arguments}: {error}");
    }
    for (arguments, expected) in [("./model --rounds 0", "--rounds"), ("./model --store", "--random")] {
        let Some(Command::Bench(args)) = parse(arguments).expect("a command line").command else { panic!("not a measurement") };
        assert!(args.check().expect_err(arguments).to_string().contains(expected), "{arguments}");
    }
}
