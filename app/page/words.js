/** A problem document in words. */

import { bytes } from "./dom.js";

const TITLES = {
  undecodable_image: "This is not a picture that can be read",
  empty_body: "This file is empty",
  body_too_large: "This picture is too large to be sent",
  too_many_pixels: "This picture has too many pixels",
  unsupported_media_type: "This is not a picture",
  bad_parameter: "The service does not take this setting",
  unknown_model: "This model is no longer there",
  unknown_version: "This version of the model is no longer there",
  model_required: "The service wants to know which model",
  model_not_ready: "This model is not ready",
  triton_unavailable: "The model’s server is away",
  deadline_exceeded: "It took too long",
  triton_error: "The model’s server answered with nonsense",
  unauthorized: "An API key is needed",
  not_understood: "The answer cannot be read",
  client_left: "The connection broke",
};

const DAMAGED = "This picture is damaged";
const FINAL = [400, 413, 415, 422]; // the same file gets the same answer
const BY_STATUS = { 413: "This picture is too large", 500: "Something broke in the service", 404: "There is nothing at this address" };

export function failure(problem) {
  const isDamaged = problem.code === "undecodable_image" && problem.detail.includes("damaged");
  const title = (isDamaged ? DAMAGED : TITLES[problem.code]) ?? BY_STATUS[problem.status] ?? `The service refused (status ${problem.status})`;
  return { title, detail: problem.detail ? sentence(problem.detail) : "", requestId: problem.requestId, isFinal: FINAL.includes(problem.status) };
}

export function connectionBroke(file) {
  const detail = `The service is there, but the connection broke each time this file (${bytes(file.size)}) was sent. It may be larger than the service, or a proxy before it, takes.`;
  return { title: "This picture did not get through", detail, requestId: "" };
}

export function unreadableFile() {
  return { title: "This file cannot be read", detail: "It may be a folder, or have been moved since.", requestId: "" };
}

export function away(problem) {
  if (!navigator.onLine) return { title: "You are offline.", text: "What you asked waits until the network is back." };
  if (!problem || problem.status === 0) return { title: "The service does not answer.", text: "What you asked is kept and sent when it is back." };
  if (problem.code === "draining") return { title: "The service is restarting.", text: "What you asked is kept and sent when it is back." };
  const why = problem.detail ? sentence(problem.detail) : `Status ${problem.status}.`;
  return { title: "The service is not ready.", text: why };
}

function sentence(text) {
  const trimmed = text.trim();
  return trimmed.charAt(0).toUpperCase() + trimmed.slice(1) + (/[.!?]$/.test(trimmed) ? "" : ".");
}
