import nounsanitized from "eslint-plugin-no-unsanitized";

export default [
  {
    files: ["src/runyard/server/pages/static/*.js"],
    languageOptions: { ecmaVersion: 2024, sourceType: "module" },
    plugins: { "no-unsanitized": nounsanitized },
    rules: {
      "no-unsanitized/method": "error",
      "no-unsanitized/property": "error",
      "no-eval": "error",
      "no-implied-eval": "error",
      "no-new-func": "error",
      "no-unused-vars": ["error", { ignoreRestSiblings: true }],
      "no-undef": "off", // tsc checks names
      "max-lines": ["error", { max: 400 }],
      eqeqeq: ["error", "always", { null: "ignore" }],
    },
  },
];
