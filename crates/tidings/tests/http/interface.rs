//! The interface as a document: `/openapi.json`.
