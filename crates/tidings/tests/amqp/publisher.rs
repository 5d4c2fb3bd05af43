//! The publisher: confirmed, or it says why not.

use tidings::amqp::AmqpError;

use crate::support::{Site, hub, memory, message};

#[tokio::test]
async fn a_message_that_no_queue_gets_is_an_error() {
    let site = Site::shared();
    let publisher = site.publisher();
    let message = message("nobody.listens", "1", "1");
    let error = publisher.publish(&message).await.unwrap_err();
    assert!(matches!(error, AmqpError::Unroutable { .. }), "{error:?}");
    let (hub, _source) = hub(memory(), &site.log_settings()).await;
    let routed = crate::support::message("log.a", "1", "1");
    publisher.publish(&routed).await.unwrap();
    publisher.close().await;
    publisher.publish(&routed).await.unwrap();
    hub.shutdown().await;
}

#[tokio::test]
async fn what_amqp_cannot_carry_is_told() {
    let site = Site::shared();
    let publisher = site.publisher();
    let error = publisher.publish(&message(&"x".repeat(256), "1", "1")).await.unwrap_err();
    assert_eq!(error.to_string(), "the routing key is longer than 255 bytes");
    let error = publisher.publish(&message("a", &"x".repeat(256), "1")).await.unwrap_err();
    assert_eq!(error.to_string(), "the message id is longer than 255 bytes");
}
