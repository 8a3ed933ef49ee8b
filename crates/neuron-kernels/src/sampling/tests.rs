use super::*;
use candle_core::Tensor;

const VOCABULARY: usize = 6;

/// Logits whose probabilities at temperature 1 are 0.05, 0.4, 0.1, 0.2, 0.2 and 0.05.
fn logits() -> Tensor {
    let weights = [1.0f32, 8.0, 2.0, 4.0, 4.0, 1.0];
    Tensor::from_vec(weights.map(f32::ln).to_vec(), (1, VOCABULARY), &Device::Cpu).unwrap()
}

fn draw(logits: &Tensor, rows: &[Row<'_>]) -> Vec<std::result::Result<Drawn, Fault>> {
    let outcome = Sampler::default().draw(logits, rows).unwrap();
    outcome.read(&outcome.words().to_vec1().unwrap()).unwrap()
}

/// How many of 400 evenly spaced numbers draw each token.
fn shares(change: impl Fn(&mut Row<'_>)) -> [usize; VOCABULARY] {
    let mut counts = [0; VOCABULARY];
    for i in 0..400u64 {
        let uniform = ((2 * i + 1) as f64 / 800.0 * 2f64.powi(64)) as u64;
        let mut row = Row { temperature: 1.0, uniform, ..Row::greedy() };
        change(&mut row);
        counts[draw(&logits(), &[row])[0].clone().unwrap().token as usize] += 1;
    }
    counts
}

type Change = fn(&mut Row<'_>);

#[test]
fn tokens_are_drawn_as_often_as_they_are_probable_among_those_kept() {
    let cases: [(Change, [usize; VOCABULARY]); 10] = [
        (|_| {}, [20, 160, 40, 80, 80, 20]),
        (|row| row.temperature = 0.0, [0, 400, 0, 0, 0, 0]),
        (|row| row.top_k = 2, [0, 267, 0, 133, 0, 0]),
        (|row| row.top_k = 3, [0, 200, 0, 100, 100, 0]),
        (|row| row.allowed = Some(&[0b110_0100]), [0, 0, 267, 0, 0, 133]),
        (|row| (row.edits, row.repetition_penalty) = (edits(&[1], &[], &[(3, -100.0), (2, 1e38)]), 9.0), [0, 0, 400, 0, 0, 0]),
        (|row| row.min_p = 0.49, [0, 200, 0, 100, 100, 0]),
        (|row| row.top_p = 0.0, [0, 400, 0, 0, 0, 0]),
        (|row| row.top_p = 0.75, [0, 200, 0, 100, 100, 0]),
        (|row| (row.top_k, row.top_p) = (3, 0.51), [0, 267, 0, 133, 0, 0]),
    ];
    for (i, (change, expected)) in cases.into_iter().enumerate() {
        let near = shares(change).into_iter().zip(expected).all(|(got, want)| got.abs_diff(want) <= 1);
        assert!(near, "case {i}: {:?} for {expected:?}", shares(change));
    }
}

/// Prompt, answer, bias, and the edits that come of them.
type EditCase<'a> = (&'a [u32], &'a [u32], &'a [(u32, f32)], &'a [Edit]);

#[test]
fn edits_come_sorted_with_what_penalties_need() {
    let edit = |token, seen, bias| Edit { token, seen, bias };
    let cases: [EditCase<'_>; 4] = [
        (&[], &[], &[], &[]),
        (&[7, 7, 3], &[3, 9, 9], &[], &[edit(3, 2, 0.0), edit(7, 1, 0.0), edit(9, 3, 0.0)]),
        (&[], &[5], &[(8, 1.0), (5, -2.0)], &[edit(5, 2, -2.0), edit(8, 0, 1.0)]),
        (&[5], &[], &[(5, 1.0), (5, 2.0)], &[edit(5, 1, 1.0), edit(5, 0, 2.0)]),
    ];
    for (prompt, answer, bias, expected) in cases {
        assert_eq!(edits(prompt, answer, bias), expected);
    }
}

#[test]
fn a_row_at_fault_says_so_and_leaves_the_others_alone() {
    let none = f32::NEG_INFINITY;
    let logits = Tensor::new(&[[1.0f32, f32::NAN], [none, none], [none, 2.0]], &Device::Cpu).unwrap();
    let got = draw(&logits, &[Row::greedy(), Row::greedy(), Row { logprobs: Some(2), ..Row::greedy() }]);
    let drawn = Drawn { token: 1, logprobs: Some(Logprobs { chosen: 0.0, top: vec![(1, 0.0)] }) };
    assert_eq!(got, [Err(Fault::NotFinite { token: 1 }), Err(Fault::NoCandidate), Ok(drawn)]);
}

#[test]
fn what_does_not_fit_is_named() {
    let unsorted = Row { edits: vec![Edit { token: 2, seen: 0, bias: 1.0 }, Edit { token: 1, seen: 0, bias: 1.0 }], ..Row::greedy() };
    let cases = [
        (vec![], "draw: logits must be [0, V] f32, got [1, 6] f32"),
        (vec![Row { logprobs: Some(21), ..Row::greedy() }], "draw: row 0 asks for 21 alternatives, at most 20 are reported"),
        (vec![unsorted], "draw: the edits of row 0 are not sorted by token"),
    ];
    for (rows, expected) in cases {
        let error = Sampler::default().draw(&logits(), &rows).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{error}");
    }
}
