use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use cortex_net::{Answer, Names, Resolve};

/// Answers as it is told, or not at all.
#[derive(Debug, Default)]
struct Book(Mutex<Option<Vec<&'static str>>>);

impl Book {
    fn says(&self, addresses: Option<&[&'static str]>) {
        *self.0.lock().unwrap() = addresses.map(<[_]>::to_vec);
    }
}

impl Resolve for Book {
    fn resolve(&self, host: &str) -> Answer {
        let told = self.0.lock().unwrap().clone();
        let silent = host == "silent.test";
        Box::pin(async move {
            if silent {
                std::future::pending::<()>().await;
            }
            Ok(told.ok_or_else(|| io::Error::other("away"))?.into_iter().map(at).collect())
        })
    }
}

fn at(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), 0)
}

#[tokio::test]
async fn a_name_without_an_answer_keeps_its_last_one_and_one_that_loses_an_address_has_moved() {
    let book = Arc::new(Book::default());
    let names = Names::new(Arc::<Book>::clone(&book), Duration::from_secs(60));
    let moves = names.moves();
    type Addresses<'a> = &'a [&'static str];
    let cases: &[(Option<Addresses<'_>>, Result<Addresses<'_>, &str>, u64)] = &[
        (None, Err("away"), 0),
        (Some(&[]), Err("the name `a.test` has no address"), 0),
        (Some(&["10.0.0.1"]), Ok(&["10.0.0.1"]), 0),
        (None, Ok(&["10.0.0.1"]), 0),
        (Some(&[]), Ok(&["10.0.0.1"]), 0),
        (Some(&["10.0.0.2", "10.0.0.1"]), Ok(&["10.0.0.2", "10.0.0.1"]), 0), // one more is no reason to leave the others
        (Some(&["10.0.0.1", "10.0.0.2"]), Ok(&["10.0.0.1", "10.0.0.2"]), 0),
        (Some(&["10.0.0.2"]), Ok(&["10.0.0.2"]), 1),
        (None, Ok(&["10.0.0.2"]), 1),
        (Some(&["fe80::1"]), Ok(&["fe80::1"]), 2),
    ];
    for (says, leads_to, moved) in cases {
        book.says(*says);
        let found = names.look_up("a.test").await.map_err(|error| error.to_string());
        let expected = leads_to.map(|addresses| addresses.iter().copied().map(at).collect::<Vec<_>>()).map_err(str::to_owned);
        assert_eq!((found, *moves.borrow()), (expected, *moved), "{says:?}");
    }
    names.retain(|host| host != "a.test");
    book.says(None);
    assert!(names.look_up("a.test").await.is_err(), "what was forgotten has no last answer");
}

#[tokio::test(start_paused = true)]
async fn names_are_asked_for_again_whether_anybody_connects_or_not() {
    let book = Arc::new(Book::default());
    let names = Arc::new(Names::new(Arc::<Book>::clone(&book), Duration::from_secs(2)));
    let mut moves = names.moves();
    book.says(Some(&["10.0.0.1"]));
    names.look_up("a.test").await.unwrap();
    tokio::spawn(Arc::clone(&names).keep_fresh(Duration::from_secs(10)));
    book.says(Some(&["10.0.0.2"]));
    let began = tokio::time::Instant::now();
    moves.changed().await.unwrap();
    assert_eq!(began.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn a_name_server_that_says_nothing_is_not_waited_for_for_ever() {
    let names = Names::new(Arc::new(Book::default()), Duration::from_secs(2));
    let error = names.look_up("silent.test").await.unwrap_err();
    assert_eq!(error.to_string(), "the name `silent.test` was not resolved within 2s");
}
