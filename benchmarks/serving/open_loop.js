import http from "k6/http";

const body = open(__ENV.BODY, "b");

export const options = {
  summaryTrendStats: ["med", "p(99)", "max"],
  scenarios: {
    open: {
      executor: "constant-arrival-rate",
      rate: parseInt(__ENV.RATE),
      timeUnit: "10s",
      duration: `${__ENV.SECONDS}s`,
      preAllocatedVUs: 400,
      gracefulStop: "30s",
    },
  },
};

export default function () {
  http.post(__ENV.URL, body, { headers: { "Content-Type": __ENV.CONTENT_TYPE }, timeout: "60s" });
}
