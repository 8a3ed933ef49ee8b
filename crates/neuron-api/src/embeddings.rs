//! `POST /v1/embeddings`.

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cortex_core::openai::embeddings::{EmbeddingEntry, EmbeddingUsage, EmbeddingVector, EncodingFormat};
use cortex_core::openai::fields::wrong_value;
use cortex_core::openai::{ApiError, EmbeddingList, EmbeddingRequest};
use cortex_core::{EmbedRequest, Usage};

use crate::Api;
use crate::call::{Call, JsonFields};
use crate::error::Failure;

pub(crate) async fn create(State(api): State<Api>, call: Call, JsonFields(fields): JsonFields) -> Result<Response, Failure> {
    let request = EmbeddingRequest::parse(fields)?;
    let model = request.model.to_string();
    let embeddings = api.harness.embed(EmbedRequest { model: request.model, inputs: request.inputs }).await?;
    let entry = |(index, vector): (usize, Vec<f32>)| {
        let vector = shorten(vector, request.dimensions)?;
        Ok(EmbeddingEntry { object: "embedding".into(), index, embedding: encode(vector, request.encoding) })
    };
    let data = embeddings.vectors.into_iter().enumerate().map(entry).collect::<Result<_, ApiError>>()?;
    let usage = EmbeddingUsage { prompt_tokens: embeddings.prompt_tokens, total_tokens: embeddings.prompt_tokens };
    let mut response = Json(EmbeddingList { object: "list".into(), data, model, usage }).into_response();
    call.report_usage(&mut response, &Usage { prompt_tokens: embeddings.prompt_tokens, ..Usage::default() });
    Ok(response)
}

/// Matryoshka models keep their meaning in the leading numbers; what is left is scaled back to unit length.
fn shorten(mut vector: Vec<f32>, dimensions: Option<usize>) -> Result<Vec<f32>, ApiError> {
    let Some(dimensions) = dimensions.filter(|&dimensions| dimensions != vector.len()) else { return Ok(vector) };
    if dimensions > vector.len() {
        return Err(wrong_value("dimensions", &format!("must be at most {}", vector.len()), &dimensions.into()));
    }
    vector.truncate(dimensions);
    let length = vector.iter().map(|x| x * x).sum::<f32>().sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|x| *x /= length);
    }
    Ok(vector)
}

fn encode(vector: Vec<f32>, encoding: EncodingFormat) -> EmbeddingVector {
    match encoding {
        EncodingFormat::Float => EmbeddingVector::Float(vector),
        EncodingFormat::Base64 => {
            EmbeddingVector::Base64(STANDARD.encode(vector.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>()))
        }
    }
}
