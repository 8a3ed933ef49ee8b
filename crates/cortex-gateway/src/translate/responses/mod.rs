//! OpenAI's Responses dialect: its requests as chat requests, and chat answers in its words. Nothing is kept between requests.

pub(crate) mod answer;
mod namespace;
pub(crate) mod request;
pub(crate) mod stream;

#[cfg(test)]
mod tests;
